"""What no plan of `handful experiment` can measure; each study is a command, `python -m reproduction.studies.NAME`."""
