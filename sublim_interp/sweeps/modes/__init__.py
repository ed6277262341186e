"""The modes of grids, a file each: which cells a grid has, what its sweep's files hold, its table and its figure."""
