"""The five stages, a file each: teach, write, filter, learn, evaluate. Each takes a record and puts its files into the store."""
