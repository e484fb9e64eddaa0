"""The form that asks for an image, judged by the SDK's own rules."""

import re
import uuid
from typing import Any

import attrs
from django import forms
from django.utils.translation import gettext_lazy as _

from imagelabs_sdk import ImageRequest, InvalidRequestError

__all__ = ["StartForm"]

_REQUEST = {field.name for field in attrs.fields(ImageRequest)}

# The SDK's words about a value, said to people. The rules and their numbers stay its own.
_SAID = [
    (r"must say what to draw", _("Say what to draw.")),
    (
        r"must be a whole number, (?P<low>\d+) to (?P<high>\d+) pixels",
        _("Must be a whole number of pixels, %(low)s to %(high)s."),
    ),
    (
        r"must be a whole number, (?P<low>\d+) to (?P<high>\d+)",
        _("Must be a whole number, %(low)s to %(high)s."),
    ),
    (
        r'must be like "(?P<example>[\d:]+)", between "(?P<low>[\d:]+)" and "(?P<high>[\d:]+)"',
        _("Must be like %(example)s, between %(low)s and %(high)s."),
    ),
    (r"give either a size or an aspect_ratio", _("Choose a format or a size, not both.")),
]


class StartForm(forms.Form):
    """What to draw. A subclass may have fewer fields, or more of `ImageRequest`'s.

    Attributes:
        image_request: What was asked for, once the form is valid.
    """

    image_request: ImageRequest

    # Made with the page: whoever presses twice sends the same twice. Browsers that fill in
    # what was there before a reload would undo that, hence `autocomplete`.
    id = forms.UUIDField(
        required=False,
        initial=uuid.uuid4,
        widget=forms.HiddenInput(attrs={"autocomplete": "off"}),
    )
    prompt = forms.CharField(
        label=_("What to draw"),
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "required": True}),
    )
    negative_prompt = forms.CharField(label=_("What to keep out"), required=False)
    aspect_ratio = forms.CharField(
        label=_("Format"),
        required=False,
        empty_value=None,
        help_text=_("Or give a size in pixels."),
        widget=forms.Select(
            choices=[
                ("", _("As usual")),
                ("1:1", _("Square")),
                ("3:2", _("Landscape 3:2")),
                ("16:9", _("Landscape 16:9")),
                ("2:3", _("Portrait 2:3")),
                ("9:16", _("Portrait 9:16")),
            ]
        ),
    )
    width = forms.IntegerField(label=_("Width"), required=False)
    height = forms.IntegerField(label=_("Height"), required=False)
    seed = forms.IntegerField(
        label=_("Seed"),
        required=False,
        help_text=_("The same seed draws the same image again."),
    )

    def clean(self) -> dict[str, Any]:
        """Let the SDK judge; its error goes to the field that it names."""
        given = {
            name: value
            for name, value in self.cleaned_data.items()
            if name in _REQUEST and value is not None
        }
        try:
            self.image_request = ImageRequest(**{"prompt": "", **given})
        except InvalidRequestError as error:
            self.refuse(error)
        return self.cleaned_data

    def refuse(self, error: InvalidRequestError) -> None:
        """Show why the SDK, or the database behind it, cannot use a value."""
        field = error.field if error.field in self.fields else None
        self.add_error(field, _words(error))


def _words(error: InvalidRequestError) -> forms.ValidationError:
    for pattern, sentence in _SAID:
        if found := re.search(f": {pattern}", error.message):
            return forms.ValidationError(sentence, params=found.groupdict())
    return forms.ValidationError(error.message)
