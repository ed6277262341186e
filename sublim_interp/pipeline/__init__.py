"""The five stages, a file each: teach, write, filter, learn, evaluate. Each puts the files of a record into the store."""
