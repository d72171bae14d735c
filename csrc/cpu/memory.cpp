#include "memory.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace torch_gas {

#ifdef __linux__
bool advise_huge_pages(uintptr_t address, uintptr_t bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = (address + bytes) / page * page;
  return begin < end && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE) == 0;
}
#else
bool advise_huge_pages(uintptr_t, uintptr_t) {
  return false;
}
#endif

}  // namespace torch_gas
