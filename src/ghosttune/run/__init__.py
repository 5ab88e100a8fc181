"""Run directories: the interface between commands.

In reading order: directory, contents, tables, recording; around it: family, scratch, git, versions.
"""
