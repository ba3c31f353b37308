#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "ort_api.h"

namespace lit_sft {

/// ONNX Runtime's library, opened while the program runs. Has to live longer than what is made of it.
class Runtime {
   public:
    /// @throws UserError where the file is not ONNX Runtime, or one too old.
    explicit Runtime(const std::filesystem::path& library);
    Runtime(const Runtime&) = delete;
    Runtime& operator=(const Runtime&) = delete;
    ~Runtime();

    [[nodiscard]] const ort::Api& api() const { return *api_; }
    [[nodiscard]] const ort::Env* env() const { return env_; }
    [[nodiscard]] const std::string& version() const { return version_; }

    /// @throws UserError with what the runtime says, in one line, behind `where`.
    void check(ort::Status* status, std::string_view where) const;

   private:
    std::unique_ptr<void, int (*)(void*)> library_;
    std::optional<ort::Api> api_;
    std::string version_;
    ort::Env* env_ = nullptr;
};

/// Where the library is: as given, else in `$LIT_SFT_ORT`, else beside the program. Folders are searched for it.
///
/// @param given of `--runtime`; empty if not given.
/// @throws UserError where there is none, saying how to get it.
std::filesystem::path find_runtime(const std::filesystem::path& given);

}  // namespace lit_sft
