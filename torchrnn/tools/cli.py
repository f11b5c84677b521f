"""The entry point of the command `torchrnn`: it says what to install if the extra is missing."""

import os
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
    except SystemExit as end:
        if end.code and "RANK" in os.environ:
            # one of several processes: what torch would clear away at the end waits for those that are gone
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)
        raise


if __name__ == "__main__":
    main()
