"""`python -m plaudit.cli`, for launchers that start a module."""

from plaudit.cli import main

main()
