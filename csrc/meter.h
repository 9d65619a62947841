/* The shim's face: sockets, ledger and event spool of one network namespace put together. */
#ifndef KUBENETMON_METER_H
#define KUBENETMON_METER_H

#include <stdint.h>

#include "interface.h"

#endif
