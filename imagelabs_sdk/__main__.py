"""``imagelabs`` and ``python -m imagelabs_sdk``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command, or say in one line what it needs; ends the process."""
    try:
        from .cli.commands import cli  # its extra may be missing, and that is worth a plain word
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("click", "rich"):
            raise
        sys.exit(f'imagelabs: {missing} is not installed: pip install "imagelabs_sdk[cli]"')
    cli()


if __name__ == "__main__":
    main()
