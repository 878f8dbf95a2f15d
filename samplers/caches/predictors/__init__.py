"""What to put in place of what is not computed: frozen predictors."""
