"""Each step: a large batch goes in, a small one whose update is nearly the same comes out."""
