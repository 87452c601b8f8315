"""Reads Kubernetes objects as YAML from standard input and prints them as a JSON array.

    objects.py VERSION...

Each must be what the API of each version of Kubernetes takes, without a field that it does not know. Custom resources, whose
schemas are not at hand, are taken as they are: the tests look at them field by field.
"""

import json
import sys

import kubernetes_validate
import yaml

CUSTOM = {"monitoring.coreos.com/v1"}

objects = [each for each in yaml.safe_load_all(sys.stdin) if each]
faults = []
for version in sys.argv[1:]:
    for each in objects:
        if each["apiVersion"] in CUSTOM:
            continue
        try:
            kubernetes_validate.validate(each, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            place = "/".join(str(part) for part in error.path)
            name = f"{each['kind']} {each['metadata']['name']}"
            faults.append(f"Kubernetes {version}: {name}: {place}: {error.message}")
if faults:
    sys.exit("\n".join(faults))
json.dump(objects, sys.stdout)
