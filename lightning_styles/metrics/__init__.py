"""How close results come to their source, to their exact stylised twin and to a set of style images."""
