/* The table of a library without kernels of its own: ve_launch finds none, and network files bring their machine code. */
#include "table.h"

const ve_table_entry ve_table[] = {{{0}, NULL, NULL}};
const int ve_table_count = 0;
