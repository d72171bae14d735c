// How the operating system lays out host memory.
#pragma once

#include <cstdint>

namespace torch_gas {

// Asks for huge pages for all whole pages in [address, address + bytes), and returns whether the
// kernel took the advice. Rows at random places then miss the TLB less often.
bool advise_huge_pages(uintptr_t address, uintptr_t bytes);

}  // namespace torch_gas
