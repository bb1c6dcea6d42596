"""Questions to other systems: DNS now; number portability and reach lists come with the routes that ask them."""
