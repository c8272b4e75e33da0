"""Other people's files as tasks: each reader turns a file into a draft, and `drafts` makes a task of it."""
