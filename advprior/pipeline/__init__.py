"""What the commands do: a project and its steps, fit, export, score, publish, card."""
