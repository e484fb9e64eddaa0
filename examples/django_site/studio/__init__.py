"""An example of imagelabs_sdk in Django."""
