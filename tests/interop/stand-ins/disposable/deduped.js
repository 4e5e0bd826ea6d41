'use strict'

// Stand-in of our own: resources are not shared, each user gets its own.
exports.deduped = factory => factory
