"""The command line: flags, settings (programs and their values), parse, args_io (files) and help.

No module here imports torch, so that --help is quick.
"""
