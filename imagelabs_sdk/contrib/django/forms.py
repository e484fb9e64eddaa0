"""The form that asks for an image; the SDK's own rules judge the values."""

import uuid
from typing import Any

import attrs
from django import forms
from django.utils.translation import gettext_lazy as _

from imagelabs_sdk import ImageRequest, InvalidRequestError

__all__ = ["MAX_PROMPT", "PromptField", "StartForm"]

MAX_PROMPT = 2000
"""Characters of a prompt in the form."""

_REQUEST = {field.name for field in attrs.fields(ImageRequest)}
_WHOLE_NUMBER = _("Must be a whole number, %(low)s to %(high)s.")
_PIXELS = _("Must be a whole number of pixels, %(low)s to %(high)s.")
_NUMBER_CODES = ("not_whole_number", "too_small", "too_large")

# The errors of the SDK, by their codes, in words for people.
_MESSAGES = {
    "blank": _("Say what to draw."),
    "malformed": _("Must be like %(example)s, between %(low)s and %(high)s."),
    "conflict": _("Choose a format or a size, not both."),
}


class PromptField(forms.CharField):
    """Text whose line breaks count as one character, as browsers count them."""

    def to_python(self, value: Any) -> Any:
        """Return the text with simple line breaks."""
        text = super().to_python(value)
        return text.replace("\r\n", "\n") if isinstance(text, str) else text


class StartForm(forms.Form):
    """What to draw. A subclass may have fewer fields, or more of those of `ImageRequest`.

    Attributes:
        image_request: The request, once the form is valid.
    """

    image_request: ImageRequest

    # Made with the page, so that a form that is sent twice is one job. `autocomplete`: browsers
    # would fill in the id of before a reload.
    id = forms.UUIDField(
        required=False,
        initial=uuid.uuid4,
        widget=forms.HiddenInput(attrs={"autocomplete": "off"}),
    )
    prompt = PromptField(
        label=_("What to draw"),
        required=False,
        max_length=MAX_PROMPT,
        widget=forms.Textarea(attrs={"rows": 3, "required": True, "dir": "auto"}),
    )
    negative_prompt = PromptField(
        label=_("What to keep out"),
        required=False,
        max_length=MAX_PROMPT,
        widget=forms.TextInput(attrs={"dir": "auto"}),
    )
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
        help_text=_("The same seed and words give the same image again."),
    )

    @classmethod
    def initial_from(cls, request: dict[str, Any]) -> dict[str, Any]:
        """Return the initial values that ask for the same as the request of a job's row."""
        size = {"width", "height"} if request.get("aspect_ratio") else set()
        names = cls.base_fields.keys() & request.keys() - size
        return {name: request[name] for name in names if request[name] not in (None, "")}

    def clean(self) -> dict[str, Any]:
        """Let the SDK check the values; show each error at its field."""
        given = {"prompt": ""} | {
            name: value
            for name, value in self.cleaned_data.items()
            if name in _REQUEST and value is not None
        }
        while True:
            try:
                self.image_request = ImageRequest(**given)
                return self.cleaned_data
            except InvalidRequestError as error:
                self.refuse(error)
                # What is refused is left out, to find the errors of the other fields; not so
                # where two fields contradict each other.
                refused = given.pop(error.field, None)
                if refused is None or error.code == "conflict":
                    return self.cleaned_data
                if error.field == "prompt":
                    given["prompt"] = "-"

    def refuse(self, error: InvalidRequestError) -> None:
        """Show why the SDK, or the database behind it, cannot use a value."""
        field = error.field if error.field in self.fields else None
        if field is None or not self.has_error(field):
            self.add_error(field, _message(error))


def _message(error: InvalidRequestError) -> forms.ValidationError:
    params = dict(error.params)
    if error.code in _NUMBER_CODES and params.get("high") is not None:
        words = _PIXELS if params.get("unit") == "pixels" else _WHOLE_NUMBER
        return forms.ValidationError(words, code=error.code, params=params)
    if error.code in _MESSAGES:
        return forms.ValidationError(_MESSAGES[error.code], code=error.code, params=params)
    return forms.ValidationError(error.message, code=error.code)
