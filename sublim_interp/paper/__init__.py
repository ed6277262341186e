"""The paper: every published table, figure and number, quoted from the committed results and checked against them."""
