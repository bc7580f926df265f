"""The command ``vision browse`` under the name that MMDetection users know."""

from vision.cli.browse import main
from vision.common.core.errors import run_cli

if __name__ == '__main__':
    run_cli(main)
