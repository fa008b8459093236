from melp.convert.model import main

if __name__ == "__main__":
    main()
