"""Name the option, argument or variable that gave a value which cannot be used."""

import os
from typing import Any

import click
from click.core import ParameterSource

from .. import InvalidRequestError

__all__ = ["Command", "option_message"]

_TYPED = "imagelabs_sdk.typed"  # where a context keeps the words that were typed
_PARAMETERS = {
    "width": ("width", "size"),
    "height": ("height", "size"),
    "extra_body": ("extra",),
    "headers": ("header",),
    "interval": ("poll_interval",),
    "max_in_flight": ("jobs",),
    "metadata": ("labels",),
    "path": ("output", "out_dir"),
    "task_id": ("task",),
}
"""Parameters of commands that give a field of the library its value; else the one of its name."""
_VARIABLES = {
    "api_key": "IMAGELABS_API_KEY",
    "cookies": "IMAGELABS_COOKIE",
    "headers": "IMAGELABS_USER_AGENT",
    "proxy": "IMAGELABS_PROXY",
}
"""Variables of the environment that the library reads by itself."""


class Command(click.Command):
    """A command whose errors name the option that the user typed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words that were typed."""
        ctx.meta[_TYPED] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except InvalidRequestError as error:
            raise click.UsageError(option_message(error, ctx), ctx) from error


def option_message(error: InvalidRequestError, ctx: click.Context | None) -> str:
    """Return the error's message, with the option that was typed instead of the field's name."""
    name = ctx and _typed_name(error.field, ctx)
    if not name:
        return str(error)
    same = name.lstrip("-").replace("-", "_").lower() in (error.field, "negative")
    return name + str(error).removeprefix(error.field) if same else f"{name}: {error}"


def _typed_name(field: str, ctx: click.Context) -> str | None:
    """Return the option, argument or variable that gave a field its value, if one did."""
    wanted = _PARAMETERS.get(field, (field,))
    for param in ctx.command.params:
        source = ctx.get_parameter_source(param.name or "")
        if param.name not in wanted or source is ParameterSource.DEFAULT:
            continue
        if source is ParameterSource.ENVIRONMENT:
            return str(param.envvar)
        return _typed_option(param, ctx)
    variable = _VARIABLES.get(field, "")
    return variable if os.environ.get(variable) else None


def _typed_option(param: click.Parameter, ctx: click.Context) -> str:
    if isinstance(param, click.Argument):
        return param.human_readable_name
    words = [word.partition("=")[0] for word in ctx.meta.get(_TYPED, ())]
    return next((name for name in param.opts if name in words), param.opts[-1])
