"""PyPI's XenAPI as a judge: connects to a pool and prints what it sees, as JSON.

Usage: python list.py URL < {"username": ..., "password": ...}
"""

import json
import sys

import XenAPI


def main():
    credentials = json.load(sys.stdin)
    session = XenAPI.Session(sys.argv[1], ignore_ssl=True)
    session.xenapi.login_with_password(credentials["username"], credentials["password"], "1.0", "backhaul-interop")
    try:
        pool = session.xenapi.pool.get_all_records()
        vms = session.xenapi.VM.get_all_records()
        hosts = session.xenapi.host.get_all_records()
        print(
            json.dumps(
                {
                    "pool": next(iter(pool.values()))["name_label"],
                    "hosts": len(hosts),
                    "vms": [
                        {"uuid": vm["uuid"], "name": vm["name_label"], "state": vm["power_state"]}
                        for vm in vms.values()
                        if not (vm["is_a_template"] or vm["is_a_snapshot"] or vm["is_control_domain"])
                    ],
                }
            )
        )
    finally:
        session.xenapi.session.logout()


main()
