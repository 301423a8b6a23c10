"""How close results come to their source, to their exact stylised twin and to a set of style images."""

HIGHER_IS_BETTER = ("identity", "diversity", "dreamsim_diversity")
