"""Many experiments at once: grids, their cells, tables, figures and published results."""
