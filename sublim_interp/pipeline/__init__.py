"""The five stages, a file each: teach, write, filter, learn, evaluate. Each puts a record's files into the store."""
