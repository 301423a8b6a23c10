"""LightningModules that train base models, among them the tiny ones that ship with the project."""
