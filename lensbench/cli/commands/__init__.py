"""The commands: one file each, called like its command. A file that is put here is found by `lensbench.cli`."""
