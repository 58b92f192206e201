#: tries = "an exported function named like a command, as Shellshock had it"
#: stdout = "mine\n"
#: env = { "BASH_FUNC_tar%%" = "() { echo forged; }", "BASH_FUNC_echo%%" = "() { printf 'mine\\n'; }" }
echo whatever
