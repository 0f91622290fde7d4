"""What a bijection is, its registry, and the general maps that families are made of."""
