"""The entry point of the command `torchrnn`: it says what to install if the extra is missing."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from torchrnn.tools.commands import app

        app()
    except ModuleNotFoundError as error:
        package = (error.name or "torchrnn").partition(".")[0]
        if package == "torchrnn":
            raise  # ours: a broken installation, not a missing extra
        sys.exit(
            f"torchrnn's command line needs the package {package}, which is not installed. Install what it needs: "
            f"pip install 'torchrnn[tools]'"
        )


if __name__ == "__main__":
    main()
