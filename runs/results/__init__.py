"""What was really measured, beside the papers: result cards, their points, and the page made of them."""
