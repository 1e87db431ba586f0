"""Planning: what recipes take on devices that are not here, as their compilers say."""
