"""Put a model folder or the Space on the Hub, whole or not at all; render the model card.

    python -m modeling.publish model RUN/model --repo_id me/name
    python -m modeling.publish space --model_id me/name --space_id me/space
    python -m modeling.publish card RUN/model

Everything is checked on this machine first and then sent as one commit, so a repository never shows half a model. What
the Hub already has is not sent again: a second run completes a push that failed, or changes nothing.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from modeling.publish.card import add_external, write_card
from modeling.publish.hub import PublishError
from modeling.publish.push import push_model
from modeling.publish.space import push_space


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m modeling.publish", description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    folder = argparse.ArgumentParser(add_help=False)
    folder.add_argument("folder", type=Path, help="the model folder of a run, RUN/model")
    external = argparse.ArgumentParser(add_help=False)
    external.add_argument(
        "--external",
        nargs="+",
        type=Path,
        default=[],
        metavar="METRICS",
        help="metrics.json of external validations (modeling.evaluation --external), to be kept in the folder for its card",
    )

    model = commands.add_parser("model", parents=[folder, external], help="send a model folder to the Hub")
    model.add_argument("--repo_id", required=True, help="where to, me/name")
    model.add_argument("--private", action="store_true", help="make a new repository private")
    model.add_argument("--revision_tag", metavar="TAG", help="name this revision, for instance v1.0")
    model.add_argument("--commit_message", help="default: the run id of the model")

    space = commands.add_parser("space", help="create or update the Space that serves a model of the Hub")
    space.add_argument("--model_id", required=True, help="the model it serves, me/name")
    space.add_argument("--space_id", required=True, help="where to, me/space")
    space.add_argument("--model_revision", help="branch, tag or commit of the model; default: its newest commit")
    space.add_argument("--private", action="store_true", help="make a new Space private")

    card_help = "write README.md and evaluation.md of a model folder anew, from its metrics.json and config.json"
    commands.add_parser("card", parents=[folder, external], help=card_help)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.command in ("model", "card") and options.external:
            add_external(options.folder, options.external)
            write_card(options.folder)
        if options.command == "model":
            pushed = push_model(
                options.folder,
                options.repo_id,
                private=options.private,
                tag=options.revision_tag,
                commit_message=options.commit_message,
            )
        elif options.command == "space":
            pushed = push_space(
                options.model_id, options.space_id, model_revision=options.model_revision, private=options.private
            )
        else:
            print(write_card(options.folder))
            return 0
    except ImportError as error:
        print(
            f"this needs {error.name}, which is not installed: "
            'pip install "skin-lesion-classifier[train]" (in a clone: pip install -e ".[train]")',
            file=sys.stderr,
        )
        return 1
    except (PublishError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{pushed.url} {'is now at' if pushed.changed else 'already was at'} revision {pushed.revision}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
