"""``python -m vision`` is the console script ``vision``."""

from vision.cli.main import entry

if __name__ == '__main__':
    entry()
