"""Token ids to one packed row: batches of rows by what they cost, the layout, and attention over it."""
