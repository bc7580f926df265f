"""The command ``vision video`` under the name that MMDetection users know."""

from vision.cli.video import main
from vision.common.core.errors import run_cli

if __name__ == '__main__':
    run_cli(main)
