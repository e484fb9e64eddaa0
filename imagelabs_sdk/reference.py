"""The names that the reference implementation of the service shows its users."""

from typing import ClassVar

from .settings import BASE_URL

__all__ = ["ReferenceProvider"]


class ReferenceProvider:
    """The attributes of the reference provider, for code that was written for it.

    The service has one model. Its name is never sent, and it is used whatever model is asked for.

    Attributes:
        url: The service's URL.
        api_endpoint: The URL to which requests for images are sent.
        working: `True`, always.
        default_model, default_image_model: The one model.
        image_models, models: A list of it.
    """

    url: str = BASE_URL
    api_endpoint: str = BASE_URL + "/txt2img"
    working: ClassVar[bool] = True
    default_model: ClassVar[str] = "sdxl-turbo"
    default_image_model: ClassVar[str] = default_model
    image_models: ClassVar[list[str]] = [default_image_model]
    models: ClassVar[list[str]] = image_models

    @classmethod
    def get_model(cls, model: str) -> str:
        """Return the one model, whatever is asked for."""
        return cls.default_model
