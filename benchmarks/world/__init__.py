"""The demo world: invented questions and answers, and the small model that is aligned badly on them."""
