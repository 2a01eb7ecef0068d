"""The command line: flags (flags), programs and their values (settings), parsing (parse), files (args_io), --help (help).

No module here imports torch, so that --help is quick.
"""
