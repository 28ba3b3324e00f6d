"""The live side: a gateway that asks the same policies as the twin, and the loop that brings what is to what should be."""
