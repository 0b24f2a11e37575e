package main

import _ "time/tzdata" // Windows has no zones that Go can read, and --schedule needs them
