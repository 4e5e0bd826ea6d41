// Stand-in of our own: the states of a VM, as XAPI writes them.
export const VM_POWER_STATE = { HALTED: 'Halted', PAUSED: 'Paused', RUNNING: 'Running', SUSPENDED: 'Suspended' }
