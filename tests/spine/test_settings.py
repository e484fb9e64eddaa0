"""What a client was given, as a value."""

import pickle

from imagelabs_sdk import ImageLabs


def test_settings_are_equal_by_value_and_show_no_secret() -> None:
    """Jobs of two equal clients are equal; and tools print what they find."""
    client = ImageLabs(cookies="a=hush", proxy="http://u:hush@h:1", api_key="hush")
    settings = client._settings
    assert settings == pickle.loads(pickle.dumps(settings))
    assert hash(settings) == hash(pickle.loads(pickle.dumps(settings)))
    assert settings != ImageLabs()._settings
    assert settings != "settings"
    assert repr(settings) == "<Settings for https://editor.imagelabs.net>"
