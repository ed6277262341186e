"""The five stages, a file each: teach, write, filter, learn, evaluate. Each makes a record's files in the store."""
