'use strict'

const UNITS = { ms: 1, s: 1e3, sec: 1e3, m: 60e3, min: 60e3, h: 3600e3, hour: 3600e3, hours: 3600e3, d: 86400e3, day: 86400e3, days: 86400e3 }

// Stand-in of our own: milliseconds, or a number with a unit.
exports.parseDuration = duration => {
  if (typeof duration === 'number') {
    return duration
  }
  const [, count, unit] = /^(\d+(?:\.\d+)?)\s*([a-z]+)$/.exec(duration) ?? []
  if (UNITS[unit] === undefined) {
    throw new TypeError(`no duration: ${duration}`)
  }
  return count * UNITS[unit]
}
