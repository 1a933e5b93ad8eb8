"""Publish a model folder or a Space on the Hub as one commit; render the model card.

    python -m modeling.publish model RUN/model --repo_id me/name --tag v1.0
    python -m modeling.publish space --model_id me/name --space_id me/space [--static | --hardware zero-a10g]
    python -m modeling.publish card RUN/model

Everything is checked on this machine before it is sent. What the Hub already has is not sent again: a second run completes a
push that failed, or changes nothing.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from modeling.publish.card import write_card
from modeling.publish.hub import PublishError
from modeling.publish.push import push_model
from modeling.publish.space import push_space


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m modeling.publish", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("folder", type=Path, help="the model folder of a run, RUN/model")
    model = commands.add_parser("model", parents=[folder], help="send a model folder to the Hub")
    model.add_argument("--repo_id", required=True, help="where to, me/name")
    model.add_argument("--private", action="store_true", help="make a new repository private")
    model.add_argument("--tag", help="name of this revision, such as v1.0; users load it with revision='v1.0'")
    model.add_argument("--commit_message", help="default: Add model of run RUN_ID")

    space = commands.add_parser("space", help="create or update the Space that serves a model of the Hub")
    space.add_argument("--model_id", required=True, help="the model it serves, me/name")
    space.add_argument("--space_id", required=True, help="where to, me/space")
    space.add_argument("--model_revision", help="branch, tag or commit of the model; default: its newest commit")
    space.add_argument("--private", action="store_true", help="make a new Space private")
    kind = space.add_mutually_exclusive_group()
    kind.add_argument("--static", action="store_true", help="a page that computes in the visitor's browser (free)")
    kind.add_argument("--hardware", help="hardware of a new Space, such as zero-a10g (free) or cpu-basic (paid plans)")

    card_help = (
        "write README.md, evaluation.md and notebook.ipynb of a model folder from its metrics.json and config.json"
    )
    commands.add_parser("card", parents=[folder], help=card_help)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options = vars(_parser().parse_args(arguments))
    command, folder = options.pop("command"), options.pop("folder", None)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if command == "card":
            print(write_card(folder))
            return 0
        pushed = push_model(folder, **options) if command == "model" else push_space(**options)
    except ImportError as error:
        message = f'{error.name} is not installed; run this in a clone: pip install -e ".[train]"'
    except (PublishError, OSError, ValueError) as error:
        message = str(error)
    else:
        print(f"{pushed.url} {'is now at' if pushed.changed else 'already was at'} revision {pushed.revision}")
        return 0
    print(message, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
