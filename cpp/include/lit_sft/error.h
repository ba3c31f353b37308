#pragma once

#include <stdexcept>

namespace lit_sft {

/// A mistake of the user or a damaged file: one line that names it and the remedy. The programs end with exit code 2.
class UserError : public std::runtime_error {
   public:
    using std::runtime_error::runtime_error;
};

}  // namespace lit_sft
